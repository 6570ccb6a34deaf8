"""Where rows live. It must not know what a row means."""
