"""The sizes of what is learned in tests of whole stages."""

from __future__ import annotations

from collections.abc import Callable

from distill import stages
from distill.config import StudentFit, TeacherFit
from distill.course import Course

BITS, SIZE, EACH = 16, 32, 20
TEACHER = TeacherFit(mode="full", epochs=1, batch=16)
STUDENT = StudentFit(epochs=1, batch=16, views=2)
Learn = Callable[..., tuple[Course, stages.Networks]]
