"""Pictures from archives and folders, checked and written as shards of records."""
