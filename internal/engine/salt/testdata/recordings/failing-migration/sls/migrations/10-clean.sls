stop it:
  cmd.run:
  - name: "echo hunter2 >&2; false"
