#!yaml
base:
  "*":
  - main
  - "migrations.10-clean"
