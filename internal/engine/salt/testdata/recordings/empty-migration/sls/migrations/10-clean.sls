{% if false %}
one:
  test.nop: []
{% endif %}
