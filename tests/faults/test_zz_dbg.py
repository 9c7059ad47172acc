import asyncio, time, pytest
from asyncsched import JobSpec
import tests.faults.test_servers_away as T
from tests.faults.test_servers_away import JOBS, AWAY_S, spread_jobs, Noting, running, eventually
pytestmark = pytest.mark.anyio
from tests.faults.conftest import *
async def test_dbg(own_server, own_url):
    there = Noting(f"{own_url}&timeout=1", lease=2.0)
    async with running(there.scheduler):
        st = there.scheduler._engine.opened_stores() if hasattr(there.scheduler,'_engine') else None
        await there.scheduler.add_jobs([*spread_jobs(), JobSpec("work", id="long", args=[4.5])])
        await eventually(lambda: len(there.begun) >= JOBS / 5)
        own_server.freeze()
        await asyncio.sleep(AWAY_S)
        own_server.thaw()
        back_at = time.monotonic()
        await there.all_gone()
        outcomes = await there.outcomes()
        store=list(st.values())[0] if isinstance(st,dict) else None
    import asyncpg
    c=await asyncpg.connect(own_server.url)
    rows=await c.fetch("select job_id,fence,kind,at,fire_at,body from asyncsched_runs where job_id='long' order by at")
    for r in rows: print(tuple(r))
    print(there.begun if len(there.begun)<5 else [b for b in there.begun if 'long' in str(b)])
    print({k:v for k,v in outcomes.items() if k[0]=='long'}, there.ran['long'], {id for id,c in there.ran.items() if c>1})
    await c.close()
