"""Where cells run, and what runs next."""
