include:
- migrations.nowhere
one:
  test.nop: []
