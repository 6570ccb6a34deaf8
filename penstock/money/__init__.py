"""What calls cost, in whole nano-dollars. It must not know what was asked or answered."""
