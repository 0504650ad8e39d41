first:
  cmd.run:
  - name: "true"
second:
  cmd.run:
  - name: "false"
third:
  cmd.run:
  - name: "true"
  - require: [{cmd: second}]
