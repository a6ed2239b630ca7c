from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.admission import NO_LOAD, Admission, Load

pytestmark = pytest.mark.fast

LIMIT = Load(windows=4, tokens=100, cache_bytes=1000, frame_bytes=1000)
LOADS = st.builds(Load, st.just(1), st.integers(0, 120), st.integers(0, 1200), st.integers(0, 1200))


@given(st.lists(LOADS, max_size=20), st.randoms(use_true_random=False))
def test_admission_keeps_order_and_limit_except_for_one_load_alone(loads: list[Load], random: object) -> None:
    async def run() -> list[int]:
        admission = Admission(LIMIT)
        inside: dict[int, Load] = {}
        order: list[int] = []

        async def one(number: int, load: Load) -> None:
            await admission.acquire(load)
            inside[number] = load
            order.append(number)
            total = sum(inside.values(), NO_LOAD)
            assert total.within(LIMIT) or len(inside) == 1
            for _ in range(random.randint(0, 3)):  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            del inside[number]
            admission.release(load)

        await asyncio.gather(*(one(number, load) for number, load in enumerate(loads)))
        return order

    assert asyncio.run(run()) == list(range(len(loads)))


def test_canceled_waiter_admits_the_next() -> None:
    async def run() -> None:
        admission = Admission(LIMIT)
        full, small = Load(1, 100, 0, 0), Load(1, 1, 0, 0)
        await admission.acquire(small)
        waiting = asyncio.create_task(admission.acquire(full))
        behind = asyncio.create_task(admission.acquire(small))
        await asyncio.sleep(0)
        assert not behind.done()  # it does not overtake
        waiting.cancel()
        await asyncio.wait_for(behind, 1)

    asyncio.run(run())


def test_waiter_canceled_while_another_leaves_takes_no_room() -> None:
    """The other load leaves before the canceled task runs again."""

    async def run() -> None:
        admission = Admission(LIMIT)
        full = Load(1, 100, 0, 0)
        await admission.acquire(full)
        waiting = asyncio.create_task(admission.acquire(full))
        await asyncio.sleep(0)
        waiting.cancel()
        admission.release(full)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(admission.acquire(full), 1)

    asyncio.run(run())


@given(st.lists(st.tuples(LOADS, st.integers(0, 6)), max_size=20), st.randoms(use_true_random=False))
def test_all_room_is_released_after_cancellations(windows: list[tuple[Load, int]], random: object) -> None:
    async def run() -> None:
        admission = Admission(LIMIT)

        async def one(load: Load) -> None:
            await admission.acquire(load)
            try:
                for _ in range(random.randint(0, 3)):  # type: ignore[attr-defined]
                    await asyncio.sleep(0)
            finally:
                admission.release(load)

        tasks = [(asyncio.create_task(one(load)), turns) for load, turns in windows]
        for turn in range(7):
            for task, turns in tasks:
                if turn == turns:
                    task.cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await asyncio.wait_for(admission.acquire(LIMIT), 1)

    asyncio.run(run())


def test_loads_that_reach_the_limit_exactly_are_within_it() -> None:
    assert LIMIT.within(LIMIT)
    assert not (LIMIT + Load(1, 0, 0, 0)).within(LIMIT)
    assert not (LIMIT + Load(0, 0, 0, 1)).within(LIMIT)
