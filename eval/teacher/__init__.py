"""The teacher-student experiment, whole."""
