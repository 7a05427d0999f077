"""The demonstration: the whole chain on a real model and real pictures, and the page it writes."""
