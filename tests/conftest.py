"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# compiling a kernel takes seconds: no deadline for the example that does
settings.register_profile("normlab", deadline=None, print_blob=True)
settings.load_profile("normlab")
