"""Run by Alembic, always with the connection that `finetune.jobs.tables.run_migrations` hands over."""

from __future__ import annotations

from alembic import context

from finetune.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
