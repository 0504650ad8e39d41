the configuration:
  file.managed:
  - name: /srv/rec/app.conf
  - contents: key = value
  - show_changes: false
its pieces:
  file.recurse:
  - name: /srv/rec/app.d
  - source: salt://conf
/srv/rec/gone:
  file.absent: []
/srv/rec/app.ini:
  ini.options_present:
  - sections: {main: {key: new}}
a line:
  file.append:
  - name: /srv/rec/app.log
  - text: begun
  - require: [{file: the configuration}]
tell somebody:
  cmd.run:
  - name: /bin/true
