"""Reports that people read: one document of what was measured, one page that shows it."""
