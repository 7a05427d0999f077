"""Several reduced models side by side: what each costs, how fast it is and what it harms, on the same data in the same rounds."""
