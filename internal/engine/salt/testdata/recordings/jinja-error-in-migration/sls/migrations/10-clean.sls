one:
  test.nop: []
two:
  cmd.run:
  - name: echo {{ pillar.reconf.vars.password }} {{ nosuch.thing }}
