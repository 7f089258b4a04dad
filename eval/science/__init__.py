"""The joint result of several studies: methods against each other, over models and tasks."""
