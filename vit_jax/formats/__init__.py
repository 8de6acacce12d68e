"""Weight files: names and layouts; arrays in, arrays out."""
