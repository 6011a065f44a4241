from __future__ import annotations

import subprocess
import sys

from gallery.cores import available_cores
from gallery.results import RunResults
from mobile_eval.system_info import cpu_name, describe
from tests.mobile_eval.factories import results


def test_the_machine_describes_itself_without_torch() -> None:
    probe = "import sys, mobile_eval.system_info as m; d = m.describe(); print('torch' in sys.modules, d.gpu)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).split() == ["False", "None"]
    machine = describe()
    assert (machine.cpu, machine.cores) == (cpu_name(), available_cores())
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_gb > 0.1
    assert "numpy" in machine.packages
    assert RunResults.model_validate(results(system=machine).model_dump()).system == machine
