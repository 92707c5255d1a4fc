"""Studies: grids of runs that answer a question with a table, a picture and a verdict."""
