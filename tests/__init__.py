"""Behaviour, through the public face; on real processes where processes matter."""

import os

from registry.imports import hide_arrow

hide_arrow()  # before anything imports pandas, as the service does
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # as well: tests fork
