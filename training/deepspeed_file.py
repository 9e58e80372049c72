def execution_options(path):
    return {}
