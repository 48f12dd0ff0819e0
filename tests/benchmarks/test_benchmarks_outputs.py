"""What the load generators print, as recorded from wrk 4.1, h2load 1.52 and curl 7.88."""

import pytest

from benchmarks.outputs import (
    Load,
    Transfer,
    Unreadable,
    median_ms,
    parse_h2load,
    parse_issuer,
    parse_transfers,
    parse_wrk,
)

WRK = """Running 1s test @ https://origin.bench.example/1k
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   103.13us  183.38us   4.17ms   99.14%
    Req/Sec    43.57k     4.49k   50.39k    60.00%
  Latency Distribution
     50%   82.00us
     75%  103.00us
     90%  127.00us
     99%    1.23ms
  43135 requests in 1.00s, 52.57MB read
{more}Requests/sec:  43116.89
Transfer/sec:     52.55MB
"""
H2LOAD = """TLS Protocol: TLSv1.3
Cipher: TLS_AES_128_GCM_SHA256
Application protocol: {protocol}
finished in 1.00s, 66470.00 req/s, 73.47MB/s
requests: 66473 total, 66502 started, 66470 done, 66470 succeeded, 3 failed, 0 errored, 0 timeout
status codes: 66470 2xx, 0 3xx, 3 4xx, 0 5xx
                     min         max         mean         sd        +/- sd
req/s           :   15542.61    19762.35    16611.71     2100.48    75.00%
"""
VERBOSE = """* Server certificate:
*  subject: O=trustme v1.2.1; CN=origin.bench.example
*  issuer: O=Bench origin CA; OU=Testing CA #bqay0IEb8UrL3r5z
*  SSL certificate verify ok.
"""


def test_wrk_gives_rate_and_percentiles_in_milliseconds():
    assert parse_wrk(WRK.format(more="")) == Load(43135, 43116.89, 0, 0.082, 1.23)


def test_wrk_adds_up_socket_errors_and_refused_statuses():
    more = "  Socket errors: connect 1, read 2, write 4, timeout 8\n  Non-2xx or 3xx responses: 16\n"
    assert parse_wrk(WRK.format(more=more)).errors == 31


def test_wrk_without_latency_has_no_percentiles():
    brief = "  160 requests in 1.00s, 1MB read\nRequests/sec:    158.25\n"
    assert parse_wrk(brief) == Load(160, 158.25, 0)


def test_h2load_gives_succeeded_requests_and_failures():
    assert parse_h2load(H2LOAD.format(protocol="h2")) == Load(66470, 66470.0, 3)


def test_h2load_that_fell_back_to_http_1_does_not_count():
    with pytest.raises(Unreadable, match=r"http/1\.1"):
        parse_h2load(H2LOAD.format(protocol="http/1.1"))


@pytest.mark.parametrize("parse", [parse_wrk, parse_h2load, parse_transfers, parse_issuer])
@pytest.mark.parametrize("text", ["", "unable to connect\n", "200 1024"])
def test_anything_else_is_unreadable(parse, text):
    with pytest.raises(Unreadable):
        parse(text)


def test_curl_transactions_are_read_line_by_line():
    first, second = parse_transfers("200 1024 0.005974\n000 0 0.5\n")
    assert (first.status, first.size_bytes, first.total_ms) == (200, 1024, pytest.approx(5.974))
    assert second.status == 0


def test_megabytes_a_second_are_of_the_whole_transaction():
    assert Transfer(200, 100_000_000, 500.0).mb_per_s == pytest.approx(200)


def test_median_leaves_out_what_was_not_answered():
    answered = [Transfer(200, 1, ms) for ms in (1.0, 9.0, 2.0)]
    assert median_ms([*answered, Transfer(502, 1, 0.1)]) == 2.0


def test_median_of_mostly_failures_is_unreadable():
    with pytest.raises(Unreadable, match="only 1 of 2"):
        median_ms([Transfer(200, 1, 1.0), Transfer(0, 0, 1.0)])


def test_issuer_is_read_from_verbose_curl():
    assert parse_issuer(VERBOSE) == "O=Bench origin CA; OU=Testing CA #bqay0IEb8UrL3r5z"
