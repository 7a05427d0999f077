"""Engines by trtexec: its options, the files it reads and writes, here or on a device over ssh."""
