"""A model as a graph: read and written, its shapes and types, constants folded, the forms of exporters made one."""
