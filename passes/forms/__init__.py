"""The form a runtime takes: inlined, bare or legal for a target, and half precision."""
