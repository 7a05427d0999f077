"""The profiles of targets: what each accepts and holds, as files of facts, and what reads them."""
