"""Pictures in files, drawn with matplotlib. Nothing here is imported before --chart asks for it."""
