package store

import "testing"

func TestGrows(t *testing.T) {
	s := New(DefaultLimits())
	s.Own(1)
	s.SetTime(1000)
	s.Apply(1, &Op{Kind: OpSet, Key: []byte("held"), Value: []byte("12345")})
	s.Apply(1, &Op{Kind: OpSet, Key: []byte("expired"), Value: []byte("12345"), TTL: 1})
	s.SetTime(2000)
	held, _ := s.Peek(1, []byte("held"))
	for name, test := range map[string]struct {
		op   Op
		want bool
	}{
		"a new key":                           {Op{Kind: OpSet, Key: []byte("new")}, true},
		"a longer value":                      {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("123456")}, true},
		"a value as long":                     {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("54321")}, false},
		"a shorter value, with a TTL":         {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("1"), TTL: 5}, false},
		"an expired key's room":               {Op{Kind: OpSet, Key: []byte("expired"), Value: []byte("54321")}, false},
		"more than an expired key's room":     {Op{Kind: OpSet, Key: []byte("expired"), Value: []byte("543210")}, true},
		"longer, but only if absent":          {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("123456"), Condition: CondAbsent}, false},
		"new, and only if absent":             {Op{Kind: OpSet, Key: []byte("new"), Condition: CondAbsent}, true},
		"new, but only if there":              {Op{Kind: OpSet, Key: []byte("new"), Condition: CondExists}, false},
		"expired, but only if there":          {Op{Kind: OpSet, Key: []byte("expired"), Value: []byte("543210"), Condition: CondExists}, false},
		"longer, of the version":              {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("123456"), Condition: CondVersion, IfVersion: held.Version}, true},
		"longer, of another version":          {Op{Kind: OpSet, Key: []byte("held"), Value: []byte("123456"), Condition: CondVersion, IfVersion: held.Version + 1}, false},
		"new, of version 0":                   {Op{Kind: OpSet, Key: []byte("new"), Condition: CondVersion}, true},
		"new, of a version":                   {Op{Kind: OpSet, Key: []byte("new"), Condition: CondVersion, IfVersion: 3}, false},
		"an append":                           {Op{Kind: OpAppend, Key: []byte("held"), Value: []byte("6")}, true},
		"an append of nothing":                {Op{Kind: OpAppend, Key: []byte("held")}, false},
		"an append of nothing to nothing":     {Op{Kind: OpAppend, Key: []byte("new")}, true},
		"an append to an expired key's room":  {Op{Kind: OpAppend, Key: []byte("expired"), Value: []byte("6")}, false},
		"a counter that is there":             {Op{Kind: OpIncrement, Key: []byte("held"), Delta: 1 << 40}, false},
		"a new counter":                       {Op{Kind: OpIncrement, Key: []byte("new"), Delta: 1}, true},
		"compare and set to something longer": {Op{Kind: OpCompareAndSet, Key: []byte("held"), Old: []byte("12345"), Value: []byte("123456")}, true},
		"compare and set to something as long": {Op{Kind: OpCompareAndSet, Key: []byte("held"), Old: []byte("12345"),
			Value: []byte("54321")}, false},
		"delete":  {Op{Kind: OpDelete, Key: []byte("held")}, false},
		"expire":  {Op{Kind: OpExpire, Key: []byte("held"), TTL: 1}, false},
		"persist": {Op{Kind: OpPersist, Key: []byte("held")}, false},
		"touch":   {Op{Kind: OpTouch, Key: []byte("held")}, false},
	} {
		if got := s.Grows(1, &test.op); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
