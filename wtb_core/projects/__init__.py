"""Projects: what a user's file says, its content as a version, and what its code offers."""

from wtb_core.projects.definition import Environment, ProjectFile, ScoreRule, read_project_file
from wtb_core.projects.registry import Project, Registry, find_project_files
from wtb_core.projects.versions import ProjectVersions

__all__ = [
    "Environment",
    "Project",
    "ProjectFile",
    "ProjectVersions",
    "Registry",
    "ScoreRule",
    "find_project_files",
    "read_project_file",
]
