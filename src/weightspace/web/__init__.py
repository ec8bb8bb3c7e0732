"""A local server: the pages of the commands, an atlas in the browser, and a playground of small networks."""
