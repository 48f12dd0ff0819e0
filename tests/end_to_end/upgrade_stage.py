"""Real servers whose dialogues go on under TLS, each a process of the test with all that it keeps in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from conftest import V4, Network

POSTGRESQL = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), Path("/usr/lib/postgresql/none"))
MARIADBD = shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin") or "mariadbd"
NEEDED = ("mariadbd", "dovecot", "slapd", "ldapsearch", "prosody", "psql")

SMTP = """
import ssl, sys, time
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
Controller(Sink(), sys.argv[1], 25, tls_context=context, require_starttls=True).start()
print("up", flush=True)
time.sleep(600)
"""
FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import TLS_FTPHandler
from pyftpdlib.servers import FTPServer
authorizer = DummyAuthorizer()
authorizer.add_user("joe", "secret", sys.argv[4])
class Handler(TLS_FTPHandler):
    certfile, keyfile, tls_control_required, tls_data_required = sys.argv[2], sys.argv[3], True, True
Handler.authorizer = authorizer
server = FTPServer((sys.argv[1], 21), Handler)
print("up", flush=True)
server.serve_forever()
"""
DOVECOT = """
protocols = imap pop3
listen = {address}
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
ssl = required
ssl_cert = <{certificate}
ssl_key = <{key}
mail_location = maildir:{folder}/mail
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={folder}
}}
first_valid_uid = 1
service imap-login {{
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  inet_listener pop3s {{
    port = 0
  }}
}}
"""
SLAPD = """
include /etc/ldap/schema/core.schema
pidfile {folder}/pid
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
modulepath /usr/lib/ldap
moduleload back_null
database null
suffix "dc=test"
"""
PROSODY = """
run_as_root = true
daemonize = false
pidfile = "{folder}/pid"
data_path = "{folder}"
interfaces = {{ "{address}" }}
modules_enabled = {{ "tls", "saslauth" }}
modules_disabled = {{ "s2s" }}
log = {{ error = "{folder}/log" }}
ssl = {{ certificate = "{certificate}", key = "{key}" }}
VirtualHost "origin.test"
"""


def start(network: Network, folder: Path) -> list[subprocess.Popen[Any]]:
    """All of them, on V4 at their usual ports, where they listen or will within a moment.

    MariaDB asks every client for a certificate: `partner.pem` and `partner.key` are one that it believes.
    """
    folder.chmod(0o755)
    clients = trustme.CA()
    clients.cert_pem.write_to_path(folder / "clients.pem")
    partner = clients.issue_cert("partner.test")
    (folder / "partner.pem").write_bytes(b"".join(one.bytes() for one in partner.cert_chain_pems))
    partner.private_key_pem.write_to_path(folder / "partner.key")
    (folder / "partner.key").chmod(0o600)
    values = {"address": V4, "certificate": network.folder / "origin.pem", "key": network.folder / "origin.key"}
    return [one(network, _folder(folder, name), values) for name, one in STARTS.items()]


def _folder(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(mode=0o755)
    return made


def _script(source: str) -> Callable[[Network, Path, dict[str, Any]], subprocess.Popen[Any]]:
    def started(network: Network, folder: Path, values: dict[str, Any]) -> subprocess.Popen[Any]:
        (folder / "letter").write_text("the letter")
        words = (V4, str(values["certificate"]), str(values["key"]), str(folder))
        return network.start(sys.executable, "-c", source, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return started


def _configured(source: str, *command: str) -> Callable[[Network, Path, dict[str, Any]], subprocess.Popen[Any]]:
    def started(network: Network, folder: Path, values: dict[str, Any]) -> subprocess.Popen[Any]:
        (folder / "mail").mkdir(mode=0o777)
        (folder / "mail").chmod(0o777)
        (folder / "conf.lua").write_text(source.format(folder=folder, **values))
        words = [word.format(folder=folder, **values) for word in command]
        return network.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return started


def _key_of(user: str, folder: Path, values: dict[str, Any]) -> str:
    """A copy of the key that `user` may read, and nobody else; the folder becomes its."""
    key = folder / "key.pem"
    shutil.copy(values["key"], key)
    key.chmod(0o600)
    for path in (key, folder):
        shutil.chown(path, user)
    return str(key)


def _postgresql(network: Network, folder: Path, values: dict[str, Any]) -> subprocess.Popen[Any]:
    key, data = _key_of("postgres", folder, values), folder / "data"
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    made = [str(POSTGRESQL / "initdb"), "-D", str(data), "--no-sync", "-A", "trust", "-U", "joe", "--no-locale"]
    subprocess.run([*as_postgres, *made], check=True, capture_output=True, cwd="/")
    (data / "pg_hba.conf").write_text("hostssl all all all trust\n")
    settings = {
        "listen_addresses": V4,
        "unix_socket_directories": "",
        "ssl": "on",
        "ssl_cert_file": values["certificate"],
        "ssl_key_file": key,
        "fsync": "off",
    }
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = [*as_postgres, str(POSTGRESQL / "postgres"), "-D", str(data), *words]
    return network.start(*server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def _mariadb(network: Network, folder: Path, values: dict[str, Any]) -> subprocess.Popen[Any]:
    """Without accounts: whoever comes is let in. No tables are made beforehand."""
    (folder / "data").mkdir()
    words = [
        f"--datadir={folder}/data", f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--bind-address={V4}",
        f"--ssl-cert={values['certificate']}", f"--ssl-key={values['key']}", f"--ssl-ca={folder.parent}/clients.pem",
        "--skip-grant-tables", "--user=root",
        "--skip-networking=0", "--port=3306", "--skip-name-resolve", "--innodb=OFF", "--default-storage-engine=Aria",
        f"--log-error={folder}/log",
    ]  # fmt: skip
    return network.start(MARIADBD, "--no-defaults", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


STARTS: dict[str, Callable[[Network, Path, dict[str, Any]], subprocess.Popen[Any]]] = {
    "smtp": _script(SMTP),
    "ftp": _script(FTP),
    "imap": _configured(DOVECOT, "/usr/sbin/dovecot", "-F", "-c", "{folder}/conf.lua"),
    "ldap": _configured(SLAPD, "/usr/sbin/slapd", "-d", "0", "-h", "ldap://{address}:389", "-f", "{folder}/conf.lua"),
    "xmpp": _configured(PROSODY, "/usr/bin/prosody", "--config", "{folder}/conf.lua", "-F"),
    "postgresql": _postgresql,
    "mysql": _mariadb,
}
PORTS = {"smtp": 25, "ftp": 21, "imap": 143, "pop3": 110, "ldap": 389, "xmpp": 5222, "postgresql": 5432, "mysql": 3306}

CLIENTS = r'''
"""Each says what it came to, as a line of JSON."""
import base64, ftplib, imaplib, io, json, os, poplib, smtplib, ssl, subprocess, sys

HOST, ROOTS = "origin.test", os.environ["SSL_CERT_FILE"]


def issuer(sock):
    return dict(part[0] for part in sock.getpeercert()["issuer"])["commonName"]


def smtp(host=HOST):
    with smtplib.SMTP(host, 25, timeout=20) as client:
        client.starttls(context=ssl.create_default_context())
        packed = base64.b64encode(b"a STARTTLS in a letter, and more!").decode()
        head = "Subject: greetings\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        client.sendmail("me@a.test", ["you@a.test"], head + packed + "\r\nSTARTTLS\r\n")
        return issuer(client.sock)


def imap():
    client = imaplib.IMAP4(HOST, timeout=20)
    client.starttls(ssl.create_default_context())
    client.login("joe", "secret")
    assert client.select()[0] == "OK"
    assert client.append("INBOX", None, None, b"Subject: kept\r\n\r\na STARTTLS in a letter\r\n")[0] == "OK"
    who = issuer(client.sock)
    client.logout()
    return who


def pop3():
    client = poplib.POP3(HOST, timeout=20)
    client.stls(ssl.create_default_context())
    client.user("joe")
    client.pass_("secret")
    assert client.stat()[0] >= 0
    who = issuer(client.sock)
    client.quit()
    return who


def ftp():
    with ftplib.FTP_TLS(HOST, timeout=20, context=ssl.create_default_context()) as client:
        client.login("joe", "secret")
        client.prot_p()
        kept = io.BytesIO()
        client.retrbinary("RETR letter", kept.write)
        assert kept.getvalue() == b"the letter"
        return issuer(client.sock)


def said(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ldap():
    asks = "-ZZ", "-x", "-H", "ldap://" + HOST, "-s", "base", "-b", "", "-LLL", "+"
    found = said("ldapsearch", *asks, LDAPTLS_CACERT=ROOTS)
    assert "namingContexts: dc=test" in found, found
    return "verified"


def xmpp():
    spaces = "xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'"
    stream = f"<stream:stream to='{HOST}' {spaces} version='1.0'>"
    client = f"openssl s_client -starttls xmpp -xmpphost {HOST} -servername {HOST} -connect {HOST}:5222"
    strict = f"-verify_return_error -verify_hostname {HOST} -CAfile {ROOTS}"
    shown = said("sh", "-c", f"(printf '%s' \"$0\"; sleep 1) | {client} {strict}", stream)
    assert "mechanism" in shown, shown
    return "verified"


def postgresql():
    where = f"host={HOST} user=joe dbname=postgres sslmode=verify-full sslrootcert={ROOTS}"
    shown = said("psql", "-XAt", where, "-c", "select version from pg_stat_ssl where pid = pg_backend_pid()")
    assert shown.startswith("TLSv1."), shown
    return "verified"


def mysql():
    import pymysql

    client = pymysql.connect(host=HOST, user="joe", ssl=ssl.create_default_context(), connect_timeout=20)
    with client.cursor() as cursor:
        cursor.execute("select 'the answer'")
        assert cursor.fetchone() == ("the answer",)
    who = issuer(client._sock)
    client.close()
    return who


def bypassed():
    return smtp("bank.test")


for one in (smtp, imap, pop3, ftp, ldap, xmpp, postgresql, mysql, bypassed):
    try:
        came_to = one()
    except Exception as error:
        came_to = f"{type(error).__name__}: {error}"
    print(json.dumps([one.__name__, came_to]), flush=True)
'''
