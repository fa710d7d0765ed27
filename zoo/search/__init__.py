"""Search over the catalogue: a filter language, a local index of what the logs say, and how the two meet.

Takes a Catalog. Gives pages of ModelVersions. Read in this order: `grammar` (text → expression), `fields` (what can be
asked for), `query` (expression → SQL), `schema` (the index's tables), `rows` (a model → rows), `sync` (catching up with
the store), `index` (the door: `CatalogIndex`).
"""
