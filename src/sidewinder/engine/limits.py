"""How much there is to give away to requests."""

from dataclasses import dataclass

from sidewinder.engine.request import Request


@dataclass(frozen=True)
class Limits:
    """What the scheduler may give away.

    Attributes:
        n_slots: sequences that run at once.
        n_draft_slots: slots beside theirs, for drafts.
        max_drafts: of one sequence in a step; 0 for none.
        drafts_beside_prompts: whether steps with prompts have drafts, too.
        max_step_tokens: tokens of one step.
        max_logit_rows: rows of logits that one step sends back to the caller.
        n_pages, page_size: hybrids: KV pages, and the tokens that one holds; else 0.
    """

    n_slots: int
    max_step_tokens: int
    max_logit_rows: int
    n_pages: int = 0
    page_size: int = 0
    n_draft_slots: int = 0
    max_drafts: int = 0
    drafts_beside_prompts: bool = True

    def pages_for(self, request: Request) -> int:
        """KV pages that the longest possible text of `request` fills."""
        return -(-request.max_stored_tokens // self.page_size) if self.page_size else 0

    def check(self, request: Request) -> None:
        """Raise ValueError if the KV pages of `request` could never be free at once."""
        needed = self.pages_for(request)
        if needed > self.n_pages:
            raise ValueError(
                f"the request may hold {request.max_stored_tokens} tokens and the KV cache holds "
                f"{self.n_pages * self.page_size}; shorten the prompt, lower max_tokens, or raise "
                f"kv_cache_tokens to {needed * self.page_size} or more"
            )
