"""Settings of all tests."""

from hypothesis import settings

# Other processes share the cores of a test machine, so one example's time says nothing.
settings.register_profile("sidewinder", deadline=None)
settings.load_profile("sidewinder")
