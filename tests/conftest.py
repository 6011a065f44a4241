"""What all tests need before anything is imported."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do: the machine may be shared
