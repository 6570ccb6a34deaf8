"""Many jobs under one name: their input, what they will cost, how far they are. It must not know a door or a broker."""
