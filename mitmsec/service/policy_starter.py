"""What `mitmsec policy init` writes: a policy that is valid as it stands, and whose comments say what to change."""

from __future__ import annotations

STARTER = """\
# A policy for mitmsec. The first rule whose conditions all hold decides; where none does, [defaults] decide.
#
#   mitmsec policy check FILE                                      is it valid?
#   mitmsec policy explain FILE --app /usr/bin/curl --host NAME    which rule decides, and why?
#   mitmsec policy test FILE                                       do the tests at the end hold?
#   mitmsec run --policy FILE -- CMD                               run CMD under it

version = 1

[defaults]
action = "decrypt"          # decrypt, bypass (unread), block, or capture (relayed and kept as it is)
on_failure = "open"         # when mitmsec itself cannot act: open (let through, recorded) or closed (deny)
quic = "refuse"             # programs then use TCP, which costs less to decrypt; or decrypt, or bypass
inspect = ["keywords"]      # what reads the decrypted traffic

[inspector.keywords]
words = ["project nightingale", "internal use only"]    # a finding for each; lists = ["words.txt"] takes files

# Programs under a name, so that rules can speak of them: by path, process_name, user, sha256, service (systemd unit),
# signer (Windows), container or pid. Each that is given must hold.
[[application]]
name = "package managers"
path = ["*/apt-get", "*/npm", "*/pip", "*/pip3"]        # globs over the whole path; * takes in / too

# What must stay private. "*.bank.example" is everything below bank.example, "bank.example" that name alone.
[[rule]]
name = "banks stay private"
host = ["bank.example", "*.bank.example"]               # also "@banks.txt": a file with one name a line
action = "bypass"
reason = "works council agreement 4.2"                  # stands in every record of it

# What must not happen. Of a rule's conditions (application, host, port, address) all must hold.
[[rule]]
name = "package managers only fetch over TLS"
application = ["package managers"]
port = [80]
action = "block"

# What leaves for the outside is read, and a finding stops it.
[[rule]]
name = "uploads are stopped"
host = ["*.paste.example"]
action = "decrypt"
on_finding = "block"                                    # or alert: it is recorded and goes on

# One connection each, and what the policy must say to it.
[[test]]
application = "/usr/bin/curl"
host = "login.bank.example"
expect = "bypass"
rule = "banks stay private"

[[test]]
application = "/usr/bin/apt-get"
host = "deb.example"
port = 80
expect = "block"

[[test]]
application = "/usr/bin/curl"
host = "www.example.org"
expect = "decrypt"
rule = "defaults"
"""
