"""Lua scripts: each changes several keys at once, or none of them.

Redis runs a script whole, so nobody sees a state without its event, or an event without its state.
"""

from __future__ import annotations

# Records a new run. Answers with the id of the run that the request_id belongs to (this one or an
# earlier one), or with '' when the run id is taken.
CREATE = """
local request, run, events, all_runs, state_index, waiting, unsent, ready, classes = unpack(KEYS)
local run_id, request_id, now, stream_length, event, turn, class = unpack(ARGV, 1, 7)
if request_id ~= '' then
  local earlier = redis.call('GET', request)
  if earlier then return earlier end
end
if redis.call('EXISTS', run) == 1 then
  -- The same creation time: this very call, sent again after its answer was lost.
  if redis.call('HGET', run, 'created_at') == now then return run_id end
  return ''
end
if request_id ~= '' then redis.call('SET', request, run_id) end
redis.call('HSET', run, unpack(ARGV, 8))
redis.call('ZADD', all_runs, 0, run_id)
redis.call('ZADD', state_index, 0, run_id)
redis.call('ZADD', waiting, now, run_id)
redis.call('ZADD', unsent, now, run_id)
redis.call('ZADD', ready, turn, run_id)
redis.call('SADD', classes, class)
redis.call('XADD', events, 'MAXLEN', '~', stream_length, '*', 'event', event)
return run_id
"""

# Records a running run anew, as its worker knows it: Redis has lost the record. Does nothing where
# there is one.
RESTORE = """
local run, events, lease, request, all_runs, state_index, classes = unpack(KEYS)
local run_id, request_id, owner, lease_milliseconds, stream_length, event, class =
  unpack(ARGV, 1, 7)
if redis.call('EXISTS', run) == 1 then return 0 end
redis.call('HSET', run, unpack(ARGV, 8))
redis.call('SET', lease, owner, 'PX', lease_milliseconds)
if request_id ~= '' then redis.call('SET', request, run_id, 'NX') end
redis.call('ZADD', all_runs, 0, run_id)
redis.call('ZADD', state_index, 0, run_id)
redis.call('SADD', classes, class)
redis.call('XADD', events, 'MAXLEN', '~', stream_length, '*', 'event', event)
return 1
"""

# Moves a run to another state if its record still has the version the caller has read.
# lease_rule: 'any'; 'free': nobody may hold the lease; 'mine': the record must name the owner.
# A run that comes to RUNNING gets the lease, any other loses it.
TRANSITION = """
local run, events, lease, waiting, unsent, ready, old_index, new_index = unpack(KEYS)
local run_id, version, now, stream_length, event = unpack(ARGV, 1, 5)
local lease_rule, owner, lease_milliseconds, is_waiting, is_unsent, turn = unpack(ARGV, 6, 11)
if redis.call('HGET', run, 'version') ~= version then return 'stale' end
if lease_rule == 'free' and redis.call('EXISTS', lease) == 1 then return 'leased' end
if lease_rule == 'mine' and redis.call('HGET', run, 'owner') ~= owner then return 'lost' end
redis.call('HSET', run, unpack(ARGV, 12))
redis.call('HINCRBY', run, 'version', 1)
redis.call('ZREM', old_index, run_id)
redis.call('ZADD', new_index, 0, run_id)
if is_waiting == '1' then
  redis.call('ZADD', waiting, 'NX', now, run_id)
  redis.call('ZADD', ready, turn, run_id)
else
  redis.call('ZREM', waiting, run_id)
  redis.call('ZREM', ready, run_id)
end
if is_unsent == '1' then
  redis.call('ZADD', unsent, now, run_id)
else
  redis.call('ZREM', unsent, run_id)
end
if lease_milliseconds ~= '0' then
  redis.call('SET', lease, owner, 'PX', lease_milliseconds)
else
  redis.call('DEL', lease)
end
redis.call('XADD', events, 'MAXLEN', '~', stream_length, '*', 'event', event)
return 'done'
"""

# Asks the worker of a running run to end or to pause it, by setting a flag.
REQUEST = """
local run = KEYS[1]
if redis.call('HGET', run, 'version') ~= ARGV[1] then return 'stale' end
redis.call('HSET', run, ARGV[2], '1', 'detail', ARGV[3])
redis.call('HINCRBY', run, 'version', 1)
return 'done'
"""

# Keeps the lease alive. A lease that has expired while Redis was away is taken again, as long as
# nobody else has the run.
RENEW = """
local run, lease = unpack(KEYS)
local owner, lease_milliseconds = unpack(ARGV)
local state, holder, cancel, pause = unpack(
  redis.call('HMGET', run, 'state', 'owner', 'cancel_requested', 'pause_requested'))
local held = redis.call('GET', lease)
if not state then return 'gone' end
if state ~= 'running' or holder ~= owner or (held and held ~= owner) then return 'lost' end
redis.call('SET', lease, owner, 'PX', lease_milliseconds)
if cancel == '1' then return 'cancel' end
if pause == '1' then return 'pause' end
return 'held'
"""

# Ends the lease of an owner that is known to be dead.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# Stores events and progress of the owner's attempt. Events are numbered from 1 within an attempt,
# so that a batch whose answer was lost can be sent again. A save beyond all before is progress that
# the next attempt begins with: the attempts are counted anew.
APPEND = """
local run, events = unpack(KEYS)
local owner, stream_length, progress, saved, first = unpack(ARGV, 1, 5)
local state, holder, stored = unpack(redis.call('HMGET', run, 'state', 'owner', 'event_sequence'))
if not state then return 'gone' end
if state ~= 'running' or holder ~= owner then return 'lost' end
stored = tonumber(stored or '0')
for index = 6, #ARGV do
  local number = tonumber(first) + index - 6
  if number > stored then
    redis.call('XADD', events, 'MAXLEN', '~', stream_length, '*', 'event', ARGV[index])
    stored = number
  end
end
redis.call('HSET', run, 'event_sequence', stored, 'progress', progress)
if saved > (redis.call('HGET', run, 'saved') or '') then
  redis.call('HSET', run, 'saved', saved, 'delivery_count', 0)
  -- Whoever has read the count decides again.
  redis.call('HINCRBY', run, 'version', 1)
end
return 'held'
"""

# Removes a run that has ended before the cutoff, with everything that was kept of it.
PRUNE = """
local run, events, request, index, all_runs = unpack(KEYS)
local run_id, state, cutoff = unpack(ARGV)
local now, finished = unpack(redis.call('HMGET', run, 'state', 'finished_at'))
if now and (now ~= state or tonumber(finished or '0') >= tonumber(cutoff)) then return 0 end
if redis.call('GET', request) == run_id then redis.call('DEL', request) end
redis.call('DEL', run, events)
redis.call('ZREM', index, run_id)
redis.call('ZREM', all_runs, run_id)
return 1
"""

# Notes in several places that a worker is alive, by the clock of Redis, and forgets those gone for
# a day.
HEARTBEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - 86400000)
end
return now
"""

# Counts the workers heard of within so many milliseconds.
COUNT_WORKERS = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZCOUNT', KEYS[1], now - ARGV[1], '+inf')
"""
