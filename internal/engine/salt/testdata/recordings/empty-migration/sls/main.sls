#!yaml
"/srv/rec/m/a":
  file.managed:
  - replace: false
  - makedirs: true
