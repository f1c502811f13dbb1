// Asks a planner which tier fits a card, or watches a run until it ends.
//
//	elite up                                  # in another terminal
//	./generate.sh && go mod tidy
//	go run . -planner 127.0.0.1:50052 qwen2.5-1.5b rtx-3090
//	go run . -trainer 127.0.0.1:50053 -watch RUN_ID
//
// A token, where the servers ask for one, is taken from ELITE_TOKEN.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	plannerv1 "elite.example/client/elite/planner/v1"
	trainerv1 "elite.example/client/elite/trainer/v1"
)

const (
	planTimeout, hostMemory    = 10 * time.Second, 64 << 30
	reconnectTries, firstPause = 6, time.Second // the pause doubles with every try
)

func main() {
	planner := flag.String("planner", "127.0.0.1:50052", "`host:port` of the planner")
	trainer := flag.String("trainer", "127.0.0.1:50053", "`host:port` of the trainer")
	runID := flag.String("watch", "", "watch the run with this `id`")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: client [flags] MODEL GPU\n       client [flags] -watch RUN_ID")
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx := context.Background()
	if token := os.Getenv("ELITE_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	var err error
	switch {
	case *runID != "" && flag.NArg() == 0:
		err = watch(ctx, *trainer, *runID)
	case *runID == "" && flag.NArg() == 2:
		err = plan(ctx, *planner, flag.Arg(0), flag.Arg(1))
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err == nil {
		return
	}
	if refusal, ok := status.FromError(err); ok {
		fmt.Fprintf(os.Stderr, "%s: %s\n", refusal.Code(), refusal.Message())
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

// connect makes a connection without TLS, good for one machine: elsewhere, give
// grpc.WithTransportCredentials, above all with a token. Dial is the old name of NewClient:
// it works with every grpc 1.x.
func connect(address string) (*grpc.ClientConn, error) {
	return grpc.Dial(address, grpc.WithInsecure())
}

// plan prints the chosen tier and what it costs.
func plan(ctx context.Context, address, modelID, gpuID string) error {
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	machine := &plannerv1.HypotheticalMachine{GpuId: gpuID, HostMemoryBytes: hostMemory}
	answer, err := plannerv1.NewPlannerServiceClient(connection).Plan(ctx, &plannerv1.PlanRequest{
		Machine: &plannerv1.Machine{Source: &plannerv1.Machine_Hypothetical{Hypothetical: machine}},
		Model:   &plannerv1.ModelReference{Source: &plannerv1.ModelReference_ModelId{ModelId: modelID}},
	})
	if err != nil {
		return err
	}
	chosen := answer.GetChosen()
	if chosen == nil {
		return fmt.Errorf("no tier fits: %s", answer.GetTiers()[0].GetRemedy())
	}
	fmt.Printf("tier %d: %d + %d tokens\n", chosen.Tier, chosen.ContextTokens, chosen.TargetTokens)
	fmt.Printf("GPU %.2f GB of %.2f GB\n",
		float64(chosen.GetGpuMemory().GetTotalBytes())/1e9, float64(answer.GetBudget().GetGpuBytes())/1e9)
	fmt.Printf("one step takes %.0f s\n", chosen.StepSeconds)
	return nil
}

// watch prints a run's states and steps until it ends. A stream that breaks is taken up after
// the last event seen.
func watch(ctx context.Context, address, runID string) error {
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := trainerv1.NewTrainerServiceClient(connection)
	request := &trainerv1.WatchRunRequest{RunId: runID}
	var state trainerv1.RunState
	for failures := 0; ; failures++ {
		stream, err := client.WatchRun(ctx, request)
		for err == nil {
			var response *trainerv1.WatchRunResponse
			if response, err = stream.Recv(); err == nil {
				request.Cursor, failures = response.GetEvent().GetCursor(), 0
				show(response.GetEvent(), &state)
			}
		}
		code := status.Code(err)
		switch {
		case err == io.EOF && state == trainerv1.RunState_RUN_STATE_SUCCEEDED:
			return nil
		case err == io.EOF:
			return fmt.Errorf("run %s did not succeed", runID)
		case code != codes.Unavailable && code != codes.Canceled, failures == reconnectTries:
			return err
		}
		fmt.Fprintf(os.Stderr, "lost the trainer; trying again (%d of %d)\n", failures+1, reconnectTries)
		time.Sleep(firstPause << failures)
	}
}

// show prints changes of state, and steps; the state is kept.
func show(event *trainerv1.RunEvent, state *trainerv1.RunState) {
	switch what := event.GetEvent().(type) {
	case *trainerv1.RunEvent_StateChanged:
		*state = what.StateChanged.GetTo()
		name := strings.ToLower(strings.TrimPrefix(state.String(), "RUN_STATE_"))
		fmt.Println(strings.TrimSpace(name + " " + what.StateChanged.GetDetail()))
	case *trainerv1.RunEvent_StepCompleted:
		step := what.StepCompleted
		fmt.Printf("step %d of %d: loss %.4f\n", step.Step, step.TotalSteps, step.Loss)
	}
}
