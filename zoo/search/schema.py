"""The index's tables. They are derived: a file of another schema version is thrown away and built anew.

Times are microseconds since the epoch, UTC; flags 0 or 1. A version whose manifest can't be read has no row in
`versions` but one in `problems`; a deleted model has no rows but that in `models`.
"""

from __future__ import annotations

VERSION = 1

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE models (
    name TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,    -- the last event of its log that is in here
    mark INTEGER NOT NULL    -- on a disk: when its log's folder was last written to, in nanoseconds; 0: look again
) WITHOUT ROWID;
CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    namespace TEXT,
    digest TEXT NOT NULL,
    created INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    latest INTEGER NOT NULL,    -- what name@latest means
    listed INTEGER NOT NULL,    -- the newest of its model that isn't archived
    architecture TEXT NOT NULL,
    head TEXT,
    license TEXT,
    parent TEXT,
    job TEXT,
    input_size INTEGER NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    num_classes INTEGER,
    bytes INTEGER NOT NULL
);
CREATE UNIQUE INDEX versions_by_name ON versions (name, version);
CREATE INDEX versions_listed ON versions (name, version) WHERE listed = 1;
CREATE INDEX versions_by_created ON versions (created, name, version);
CREATE INDEX versions_by_parent ON versions (parent, name, version) WHERE parent IS NOT NULL;
CREATE INDEX versions_by_digest ON versions (digest);
CREATE TABLE aliases (
    name TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (name, alias)
) WITHOUT ROWID;
CREATE TABLE metric_keys (id INTEGER PRIMARY KEY, split TEXT NOT NULL, metric TEXT NOT NULL, UNIQUE (split, metric));
CREATE TABLE metrics (
    version_id INTEGER NOT NULL, key_id INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (version_id, key_id)
) WITHOUT ROWID;
CREATE TABLE problems (name TEXT NOT NULL, version INTEGER, message TEXT NOT NULL);
CREATE INDEX problems_by_name ON problems (name);
CREATE TABLE hints (event_id TEXT PRIMARY KEY, hour TEXT NOT NULL) WITHOUT ROWID;    -- of the feed, dealt with
"""
NAMES = ("meta", "models", "versions", "aliases", "metric_keys", "metrics", "problems", "hints")
