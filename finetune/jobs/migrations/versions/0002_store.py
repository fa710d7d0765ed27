"""Which store the jobs of a queue belong to.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("store", sa.Column("id", sa.Integer, primary_key=True), sa.Column("url", sa.Text, nullable=False))


def downgrade() -> None:
    op.drop_table("store")
