-- Writes and removes again what decisions write, to find out whether Redis takes writes.
--
-- KEYS   1 a hash, 2 a list; named like a sale's, but of no sale; one hash tag
-- ARGV   1 when they would expire (unix seconds)
-- Reply  'K'; an error if Redis refuses a command that the scripts of checkouts and purchases use
-- Holds  nothing is left: no other client ever sees the keys

local state, queue = KEYS[1], KEYS[2]
redis.call('TIME')
redis.call('HMGET', state, 'epoch')
redis.call('HGET', state, 'epoch')
redis.call('LLEN', queue)
redis.call('LINDEX', queue, 0)
redis.call('LRANGE', queue, 0, 0)
redis.call('HSET', state, 'epoch', '0')
redis.call('RPUSH', queue, '0')
redis.call('EXPIREAT', queue, ARGV[1])
redis.call('LTRIM', queue, 1, -1)
redis.call('UNLINK', state, queue)
return 'K'
