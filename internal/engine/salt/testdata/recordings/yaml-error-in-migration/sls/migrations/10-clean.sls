one:
  test.nop: []
two:
  cmd.run: [
