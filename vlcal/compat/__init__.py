"""Other libraries' names and signatures over the functions of this one: one module each."""
