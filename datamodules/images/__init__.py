"""Images in folders, their transforms and DataModules."""
