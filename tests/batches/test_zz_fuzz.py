import json, sys
from tests.batches.conftest import *
from tests.batches.test_batches import *
LOG = open("/tmp/h_fuzz.log","w")
def p(*a): print(*a, file=LOG, flush=True)
ODD = [
 {"document":"\ud800 x"}, {"document":"a\u0000b"}, {"document":"ok","metadata":{"k\u0000":"v"}}, {"document":"ok","metadata":{"k":"v\u0000"}},
 {"document":"ok","metadata":{"k":"\ud800"}}, {"document":"ok","document_name":"a\u0000b"}, {"document":"ok","document_name":"\ud800"},
 {"document":"ok","deadline":"9999-12-31T23:59:59-12:00"}, {"document":"ok","deadline":"0001-01-01T00:00:00+12:00"}, {"document":"ok","deadline":1e300},
 {"document":"ok","priority":10**30}, {"document":"ok","priority":"5"}, {"document":"ok","priority":float("nan")}, {"document":"ok","priority":True},
 {"document":5}, {"document":["a"]}, {"document":{"a":1}}, {"document":None}, {}, {"document":"ok","variables":"x"}, {"document":"ok","variables":[["a","b"]]},
 {"document":"ok","variables":{"language":"\u0000"}}, {"document":"ok","variables":{"language":"x"*10**6}}, {"document":"ok","metadata":{"k":5}}, {"document":"ok","metadata":None},
 {"document":"ok","variables":{"language":None}}, {"document":"x"*6_000_000}, {"document":"ok","media_type":"text/\u0000"}, {"document":"ok","media_type":"application/pdf"},
 {"document":"ok","\ud800":1}, {"document":"ok","a\u0000":1}, {"document":"ok","document_name":"x"*100000}, {"document":"ok","metadata":{"k":"x"*10**7}},
 {"document":"ok","metadata":{str(i):"x" for i in range(10000)}}, {"document":b"raw \xff"}, {"document":"/etc/passwd"}, {"document":"\ufeff"}, {"document":"\u200b"},
 {"document": "x"*1, "deadline": "2020-01-01T00:00:00Z"},{"document":"ok","deadline":"infinity"}, {"document":"ok","idempotency_key":"x"},
]
def test_odd(client):
    client.batch("night", REQUEST, ODD + [{"document":"good"}])
    refused = {e.number: e.reason for e in client.batch_errors("acme","night")}
    for i, o in enumerate(ODD, 1):
        p(i, ascii(str(o))[:80], "->", ascii(refused.get(i, "ACCEPTED"))[:200])
    p(client.batch_progress("acme","night").jobs)
def test_each_alone(client):
    for i, o in enumerate(ODD,1):
        try: client.batch(f"n{i}", REQUEST, [o])
        except BaseException as e: p("ALONE", i, ascii(str(o))[:60], type(e), str(e)[:200])
def test_callbacks(client, engine, services):
    for cb in ["@", "task@", "a"*5000, "x@y z", "a\x00b", "ta sk", "ok@q", ""]:
        name = f"cb{abs(hash(cb))}"
        try:
            client.batch(name, REQUEST, [], callback=cb)
        except BaseException as e:
            p("CB", ascii(cb)[:20], "BEGIN", type(e), str(e)[:200]); continue
        for i in range(2):
            try: tend(engine, Doorbell(services.redis.url)); p("CB", ascii(cb)[:20], "told")
            except BaseException as e: p("CB", ascii(cb)[:20], "TEND", type(e), str(e)[:200])
        b = client.find_batch("acme", name); p("   ", b.state)
        rows.execute(engine, "UPDATE batches SET announced = true")
def test_forever(client, engine, services):
    import threading
    client.batch("night", REQUEST, documents(3000))
    errs=[]
    def loop(f):
        for _ in range(15):
            try: f()
            except Exception as e: errs.append(repr(e)[:200])
    def t(): tend(engine, Doorbell(services.redis.url))
    def flip():
        client.pause_batch("acme","night"); client.resume_batch("acme","night")
    ts=[threading.Thread(target=loop,args=(f,)) for f in (t,t,t,flip)]
    [x.start() for x in ts]; [x.join() for x in ts]
    p("several upkeeps", errs, states(client))
    def c(): client.cancel_batch("acme","night")
    ts=[threading.Thread(target=loop,args=(f,)) for f in (t,t,c)]
    [x.start() for x in ts]; [x.join() for x in ts]
    p("cancel", errs[:5], states(client), client.find_batch("acme","night").state)
