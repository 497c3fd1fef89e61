package flexcoreplugin

import (
	"context"
	"io"
	"sync"

	"flexcoreplugin/pluginv1"

	"github.com/golang/protobuf/proto"
)

// streaming is what holds for all calls of a stream.
type streaming struct {
	stream   pluginv1.Plugin_StreamServer
	ctx      context.Context
	cancel   context.CancelFunc
	call     *Call
	function *Function
	// Why none of the calls is made; nil: they are.
	refusal *pluginv1.Failure
	// For the calls of all batches.
	room chan struct{}
	// One answer is sent at a time.
	sending sync.Mutex
	// Why the stream ends before its caller ends it: the first reason.
	once sync.Once
	why  error
}

// end ends all calls of the stream.
func (s *streaming) end(why error) error {
	s.once.Do(func() { s.why = why })
	s.cancel()
	return s.why
}

// Stream calls a function many times. Each batch is answered when all of it is done.
func (s *served) Stream(stream pluginv1.Plugin_StreamServer) error {
	first, err := stream.Recv()
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	if first.Context == nil {
		return withoutContext()
	}
	all := s.streaming(stream, first)
	defer all.cancel()
	ended := make(chan error, 1)
	go func() { ended <- all.batches(first) }()
	select {
	case err := <-ended:
		return err
	case <-all.ctx.Done():
		return all.end(late(all.ctx))
	}
}

func (s *served) streaming(stream pluginv1.Plugin_StreamServer, first *pluginv1.StreamRequest) *streaming {
	all := &streaming{stream: stream, function: s.functions[first.Function]}
	all.ctx, all.cancel = until(stream.Context(), first.Context)
	atOnce := callsAtOnce
	if all.function == nil {
		all.refusal = unknown(first.Function)
	} else if all.function.AtOnce > 0 {
		atOnce = all.function.AtOnce
	}
	all.call = s.calling(first.Context, first.Function)
	all.room = make(chan struct{}, atOnce)
	return all
}

// batches takes batch after batch, some at once, and returns when all are answered.
func (s *streaming) batches(request *pluginv1.StreamRequest) error {
	var answered sync.WaitGroup
	defer answered.Wait()
	room := make(chan struct{}, batchesAtOnce)
	for {
		if err := checkInputs(request); err != nil {
			return s.end(err)
		}
		select {
		case room <- struct{}{}:
		case <-s.ctx.Done():
			return s.end(late(s.ctx))
		}
		answered.Add(1)
		go func(request *pluginv1.StreamRequest) {
			defer answered.Done()
			if err := s.batch(request); err != nil {
				s.end(err)
			}
			<-room
		}(request)
		next, err := s.stream.Recv()
		if err == io.EOF {
			answered.Wait()
			if s.ctx.Err() != nil {
				return s.end(late(s.ctx))
			}
			return nil
		}
		if err != nil {
			return s.end(err)
		}
		request = next
	}
}

func (s *streaming) batch(request *pluginv1.StreamRequest) error {
	results := make([]*pluginv1.CallResponse, len(request.Inputs))
	var called sync.WaitGroup
	for index, input := range request.Inputs {
		if s.refusal != nil {
			results[index] = failed(s.refusal)
			continue
		}
		select {
		case s.room <- struct{}{}:
		case <-s.ctx.Done():
			called.Wait()
			return late(s.ctx)
		}
		called.Add(1)
		go func(index int, input []byte) {
			defer called.Done()
			results[index] = s.one(request.Number, index, input)
			<-s.room
		}(index, input)
	}
	called.Wait()
	if s.ctx.Err() != nil {
		return late(s.ctx)
	}
	// Outputs that do not go into one message with those before them are left out.
	bytes := 0
	for index, result := range results {
		if bytes += proto.Size(result); bytes > outputBytesMax {
			results[index] = failed(tooMuch())
		}
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(&pluginv1.StreamResponse{Number: request.Number, Results: results})
}

// one call of a batch; its context ends with it, like that of a call alone.
func (s *streaming) one(batch uint64, index int, input []byte) *pluginv1.CallResponse {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	return s.function.answer(ctx, s.call.of(batch, index), input)
}

func checkInputs(request *pluginv1.StreamRequest) error {
	if err := atMost("a number of inputs", len(request.Inputs), batchItemsMax); err != nil {
		return err
	}
	bytes := 0
	for _, input := range request.Inputs {
		bytes += len(input)
	}
	return atMost("a batch of inputs, in bytes,", bytes, inputBytesMax)
}
