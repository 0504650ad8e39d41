#!yaml
"/srv/rec/planned":
  file.symlink:
  - name: "/srv/rec/planned"
  - target: "/nowhere"
